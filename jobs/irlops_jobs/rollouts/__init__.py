"""On-policy samples, from transformers or from vLLM, behind one small interface."""
