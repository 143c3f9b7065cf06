"""WhatsApp Cloud API webhooks through Packhorse: dedup, order per phone number, retries, dead letters.

Read webhook.py (a producer) and actors.py (the handlers) first: they are what you would write yourself. The
rest plays Meta's side and shows what happens. docs/example-whatsapp.md is the guide.
"""
