<?php
// Enqueue over HTTP: PACKHORSE_URL=http://localhost:8400 PACKHORSE_TOKEN=phk_… php enqueue.php
function enqueue(array $messages, string $idempotencyKey): array
{
    $request = curl_init(getenv('PACKHORSE_URL') . '/v1/messages');
    curl_setopt_array($request, [
        CURLOPT_POST => true,
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 30,
        CURLOPT_HTTPHEADER => [
            'Authorization: Bearer ' . getenv('PACKHORSE_TOKEN'),
            'Content-Type: application/json',
            'Idempotency-Key: ' . $idempotencyKey,
        ],
        CURLOPT_POSTFIELDS => json_encode($messages, JSON_THROW_ON_ERROR),
    ]);
    $body = curl_exec($request);
    $status = curl_getinfo($request, CURLINFO_RESPONSE_CODE);
    if ($body === false || $status >= 300) {
        // 429, 503 or no answer: send the same again, with the same key
        throw new RuntimeException("not enqueued: status $status: $body");
    }
    return json_decode($body, true, 512, JSON_THROW_ON_ERROR);
}

$order = ['queue' => 'orders', 'message_type' => 'order.created', 'payload' => ['order' => 7]];
echo json_encode(enqueue($order, 'order-7-created')), PHP_EOL;
