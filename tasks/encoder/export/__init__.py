"""From trained towers to files: ONNX graphs, int8, tokenizer, MLflow flavor, runtimes."""
