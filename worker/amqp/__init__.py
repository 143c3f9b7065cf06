"""The way to RabbitMQ: what the relay publishes, and how workers run it from there (docs/rabbitmq.md)."""
