"""The policy behind OpenAI's API: stock vLLM where it is installed, a transformers server of the same shape elsewhere.

    request -> prompt tokens -> one prefill, n samples decoded together -> pieces of text -> OpenAI's shapes

``python -m irlops_serving.policy --backend vllm`` becomes vLLM's own server, with the settings a small machine needs.
The other backend answers the same requests with the same keys and types (held by tests/local/test_policy_server.py), so
that the gateway and every client can't tell them apart; it is for machines without vLLM, not for throughput.
"""
