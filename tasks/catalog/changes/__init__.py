"""The stream of catalogue changes: one protocol, three sources (outbox, SQS, Kafka), and the ledger of index versions."""
