"""The thin container that answers: FastAPI + ONNX Runtime + FAISS. Never torch, Spark, Airflow or full MLflow."""
