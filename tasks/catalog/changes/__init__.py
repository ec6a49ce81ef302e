"""Changes of the catalogue as a stream: one protocol, three sources (outbox, SQS, Kafka), and what an index version holds of them."""
