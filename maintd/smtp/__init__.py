"""Sending over SMTP, one message at a time with a verdict for each, and a server to receive it. Bytes only."""
