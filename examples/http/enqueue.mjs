// Enqueue over HTTP from Node 18 or newer: PACKHORSE_URL=http://localhost:8400 PACKHORSE_TOKEN=phk_… node enqueue.mjs
const { PACKHORSE_URL, PACKHORSE_TOKEN } = process.env;

async function enqueue(messages, idempotencyKey) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`${PACKHORSE_URL}/v1/messages`, {
        method: "POST",
        headers: {
          Authorization: `Bearer ${PACKHORSE_TOKEN}`,
          "Content-Type": "application/json",
          "Idempotency-Key": idempotencyKey,
        },
        body: JSON.stringify(messages),
      });
    } catch (error) {
      if (attempt === 4) throw error;
    }
    if (answer?.ok) return answer.json();
    if (answer && answer.status !== 429 && answer.status < 500) {
      const problem = await answer.json();
      throw new Error(`${problem.detail} ${problem.hint ?? ""}`);
    }
    if (attempt === 4) throw new Error(`not enqueued: status ${answer?.status}`);
    // the same key: what the first request may have stored is not stored twice
    const seconds = Number(answer?.headers.get("Retry-After") ?? 2 ** attempt);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

const order = { queue: "orders", message_type: "order.created", payload: { order: 7 } };
console.log(JSON.stringify(await enqueue(order, "order-7-created")));
console.log(JSON.stringify(await enqueue([order, { ...order, delay: "5 minutes" }], "order-7-both")));
