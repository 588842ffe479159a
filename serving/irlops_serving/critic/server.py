"""The critic as a KServe model: V2 protocol, ready only once its weights are in memory.

    POST /v2/models/critic/infer    token_ids INT64 [total], lengths INT64 [batch] -> rewards FP32 [total]

``token_ids`` are the prompt and solution tokens of all items, one item after the other; ``lengths`` says how many
belong to each. A reward is the raw logit at the token's own position; higher is more expert-like. Ask for binary output
(``"parameters": {"binary_data_output": true}``) when many tokens come back: it is several times cheaper than JSON.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InferenceError, InvalidInput

from irlops_serving.critic.batching import MicroBatcher, TooManyWaitingError
from irlops_serving.critic.checkpoint import LoadedCritic, Precision, load_critic
from irlops_serving.critic.scoring import Rewards, Tokens, TokenScorer
from irlops_serving.tracing import ServerTracer, make_server_tracer


@dataclass(frozen=True)
class CriticServerSettings:
    """What ``python -m irlops_serving.critic`` is told.

    Example: ``CriticServerSettings(model_dir=Path("out/airl/critic"), port=8102)``.
    """

    model_dir: Path
    model_name: str = "critic"
    host: str = "0.0.0.0"  # noqa: S104 - a pod is reached from outside; NetworkPolicies say by whom
    port: int = 8080
    precision: Precision = "float32"
    max_length: int | None = None
    """Longest item in tokens; None takes the model's context."""
    max_batch_tokens: int = 8192
    """In one forward pass."""
    max_items: int = 1024
    """In one request."""


class CriticModel(Model):
    """Scores tokens. Load it before the server starts: a server without a ready model refuses to."""

    def __init__(self, settings: CriticServerSettings, tracer: ServerTracer | None = None) -> None:
        super().__init__(settings.model_name)
        self._settings = settings
        self._tracer = tracer or ServerTracer()
        self._critic: LoadedCritic | None = None
        self._batcher: MicroBatcher | None = None

    def load(self) -> bool:
        """Load the weights.

        Raises:
            PairError: the folder can't be served; the message says why.
        """
        self._critic = load_critic(self._settings.model_dir, precision=self._settings.precision)
        scorer = TokenScorer(self._critic, max_batch_tokens=self._settings.max_batch_tokens)
        self._batcher = MicroBatcher(scorer.score)
        self.ready = True
        return self.ready

    def start(self) -> None:
        """Called by the server for every model; KServe's own version says "ready" without looking."""
        self.ready = self._critic is not None

    @property
    def max_length(self) -> int:
        assert self._critic is not None, "load() comes first"
        return min(self._critic.max_length, self._settings.max_length or self._critic.max_length)

    def get_input_types(self) -> list[dict[str, Any]]:
        return [
            {"name": "token_ids", "datatype": "INT64", "shape": [-1]},
            {"name": "lengths", "datatype": "INT64", "shape": [-1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "rewards", "datatype": "FP32", "shape": [-1]}]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,  # noqa: ARG002 - KServe's signature
    ) -> InferResponse:
        if not isinstance(payload, InferRequest):
            raise InvalidInput("The critic speaks the V2 protocol only: POST /v2/models/critic/infer.")
        asked = {"gen_ai.operation.name": "score", "gen_ai.request.model": self.name}
        with self._tracer.request(f"score {self.name}", headers or {}, asked) as facts:
            sequences = self._read(payload)
            facts |= {"irlops.batch_items": len(sequences), "gen_ai.usage.input_tokens": sum(map(len, sequences))}
            return self._reply(payload, np.concatenate(await self._score(sequences)))

    async def _score(self, sequences: list[Tokens]) -> list[Rewards]:
        assert self._batcher is not None, "load() comes first"
        try:
            return await self._batcher.score(sequences)
        except TooManyWaitingError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error

    def _read(self, request: InferRequest) -> list[Tokens]:
        """The items of a request, each (T,) int64.

        Raises:
            InvalidInput: they can't be scored (400); one message that says what was seen.
        """
        inputs = {tensor.name: tensor for tensor in request.inputs}
        if set(inputs) != {"token_ids", "lengths"}:
            raise InvalidInput(f"The inputs are {sorted(inputs)}; the critic takes token_ids and lengths.")
        assert self._critic is not None, "load() comes first"
        token_ids, lengths = _read_integers(inputs["token_ids"]), _read_integers(inputs["lengths"])
        _check_lengths(lengths, len(token_ids), self.max_length, self._settings.max_items)
        _check_vocabulary(token_ids, self._critic.vocabulary_size)
        return np.split(token_ids, np.cumsum(lengths)[:-1])

    def _reply(self, request: InferRequest, rewards: Rewards) -> InferResponse:
        if not np.isfinite(rewards).all():
            raise InferenceError("The critic gave rewards that are not finite numbers; its weights are broken.")
        output = InferOutput(name="rewards", shape=[len(rewards)], datatype="FP32")
        wants_binary = any(asked.binary_data for asked in request.request_outputs or ())
        output.set_data_from_numpy(rewards, binary_data=bool(request.use_binary_outputs or wants_binary))
        return InferResponse(
            response_id=request.id or "",
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


def _read_integers(tensor: InferInput) -> Tokens:
    if tensor.datatype not in ("INT64", "INT32"):
        raise InvalidInput(f"{tensor.name} has datatype {tensor.datatype}; the critic takes INT64.")
    try:
        values = np.asarray(tensor.data) if tensor.data is not None else tensor.as_numpy()
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{tensor.name} is not one list of integers ({error}).") from error
    if values.ndim != 1 or (values.size and values.dtype.kind != "i"):
        raise InvalidInput(
            f"{tensor.name} is not one flat list of integers (read {values.ndim} dimensions of {values.dtype})."
        )
    if list(tensor.shape) != [values.size]:
        raise InvalidInput(f"{tensor.name} says shape {list(tensor.shape)}, but holds {values.size} values.")
    return values.astype(np.int64)


def _check_lengths(lengths: Tokens, num_tokens: int, max_length: int, max_items: int) -> None:
    if not 1 <= len(lengths) <= max_items:
        raise InvalidInput(
            f"lengths has {len(lengths)} entries; a request takes 1 to {max_items} items. Send several requests."
        )
    if lengths.min() < 1:
        raise InvalidInput(
            f"Item {int(lengths.argmin())} has length {int(lengths.min())}; every item needs at least one token."
        )
    if lengths.max() > max_length:
        raise InvalidInput(
            f"Item {int(lengths.argmax())} has {int(lengths.max())} tokens, more than the critic's context of "
            f"{max_length}. Shorten the prompt or the solution."
        )
    if lengths.sum() != num_tokens:
        raise InvalidInput(f"lengths add up to {int(lengths.sum())}, but token_ids holds {num_tokens} tokens.")


def _check_vocabulary(token_ids: Tokens, vocabulary_size: int) -> None:
    wrong = np.flatnonzero((token_ids < 0) | (token_ids >= vocabulary_size))
    if len(wrong):
        raise InvalidInput(
            f"Token id {int(token_ids[wrong[0]])} (position {int(wrong[0])}) is outside the critic's vocabulary of "
            f"{vocabulary_size}. Policy and critic have to share one tokenizer."
        )


class _Server(ModelServer):
    """KServe's server, on the address we choose: its own always listens on every interface."""

    def __init__(self, settings: CriticServerSettings) -> None:
        super().__init__(
            http_port=settings.port, workers=1, enable_grpc=False, enable_latency_logging=False, grace_period=10
        )
        self._host = settings.host

    async def _serve(self) -> None:
        assert self._rest_server is not None
        self._rest_server.config.host = self._host
        await super()._serve()


def serve_critic(settings: CriticServerSettings) -> None:
    """Load the critic, then answer until SIGTERM or SIGINT.

    Raises:
        PairError: the folder can't be served.
    """
    tracer = make_server_tracer("irlops-critic")
    model = CriticModel(settings, tracer)
    model.load()
    server = _Server(settings)  # configures logging
    # Three lines for every request and probe; /metrics has the numbers, and refused requests are logged as errors.
    for chatty in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    server.start([model])
    tracer.close()
