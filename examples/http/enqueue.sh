#!/bin/sh
# Enqueue over HTTP: PACKHORSE_URL=http://localhost:8400 PACKHORSE_TOKEN=phk_… sh enqueue.sh
curl --fail-with-body --silent --show-error --retry 5 --retry-connrefused --max-time 30 "$PACKHORSE_URL/v1/messages" \
  -H "Authorization: Bearer $PACKHORSE_TOKEN" -H "Content-Type: application/json" -H "Idempotency-Key: order-7-created" \
  -d '{"queue": "orders", "message_type": "order.created", "payload": {"order": 7}}'
