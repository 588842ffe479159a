"""The gateway: OpenAI's HTTP interface before a policy and its critic. It loads no weights.

app        one ASGI application: routes, request ids, errors, access log
settings   one YAML and the environment
exchange   a request and its response, as cheaply as ASGI allows
auth       who calls (API keys, OIDC)            allowances   how much they may call
admission  how many at once                      backends     the pair behind, hot-swapped
upstream   HTTP to a server, with breaker        policy, critic   what is said to each
passthrough, reranked, rewards                   the three kinds of request
sampling   waves of candidates, scored while more are sampled; deadline and budgets
tokens, steps                                    exact offsets, segmentation, returns
"""
