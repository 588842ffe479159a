"""The critic behind HTTP: token ids in, one reward per token out.

    checkpoint folder -> load_critic -> TokenScorer -> MicroBatcher -> CriticModel on KServe's ModelServer (V2)

The same folder runs on stock vLLM's pooling runner, with equal numbers. What both read (tried with transformers 5.19
and vLLM 0.32; held by tests/local/test_vllm_parity.py):

- ``AutoModelForTokenClassification`` with ``num_labels=1``, as ``save_pretrained`` writes it: ``model.*``,
  ``score.weight`` (1, width) and ``score.bias`` (1); ``architectures: ["<Family>ForTokenClassification"]`` and an
  ``id2label`` of one entry (without it both libraries assume two labels).
- The head's bias: vLLM adds ``score.bias`` when the file has one, and none otherwise; so does transformers.
- Precision: vLLM's ``--dtype auto`` turns float32 weights into float16 (rewards off by some 1e-3). Both servers run in
  float32 here, whatever the file holds.
- Activation: vLLM applies a sigmoid unless a request says ``"use_activation": false``. A reward is the raw logit.
- Attention heads of a multiple of 32, for vLLM's CPU kernels.
"""
