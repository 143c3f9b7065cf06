"""dramatiq's doors: broker, consumer, result and rate-limit backends."""
