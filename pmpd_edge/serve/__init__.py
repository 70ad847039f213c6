"""The server: OpenAI's HTTP interface in front of one `Pmpd`, and the demo page."""
