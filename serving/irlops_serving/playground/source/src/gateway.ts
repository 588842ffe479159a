import type { Progress, Question, RerankResult, RewardsResponse } from "./types";

/** A refusal as a person reads it; `needsKey` asks for the key field. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly needsKey = false,
  ) {
    super(message);
  }
}

interface ErrorBody {
  error?: { message?: string; code?: string | null };
}

type Chunk = ErrorBody & { rerank_progress?: Progress; rerank?: RerankResult };

function headers(key: string): HeadersInit {
  const common = { "content-type": "application/json" };
  return key ? { ...common, authorization: `Bearer ${key}` } : common;
}

async function post(path: string, body: unknown, key: string, signal: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refusal("The gateway could not be reached. Check that it is running, then try again.");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response: Response): Promise<Refusal> {
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  const said = body.error?.message ?? `The gateway answered with status ${response.status}.`;
  const wait = Number(response.headers.get("retry-after"));
  const later = wait > 0 && !/try again|retry|come back/i.test(said) ? ` Try again in ${wait} s.` : "";
  if (response.status === 401) return new Refusal(`The gateway needs a valid API key. ${said}`, true);
  if (response.status === 403) return new Refusal(`Your API key may not do this. ${said}`, true);
  if (response.status === 429) return new Refusal(`You have used up what your key allows for now. ${said}${later}`);
  if (response.status === 503) return new Refusal(`The gateway can't answer right now. ${said}${later}`);
  return new Refusal(said);
}

/** Ask the model `reranked` and report every candidate as it arrives. */
export async function ask(
  question: Question,
  key: string,
  signal: AbortSignal,
  onProgress: (progress: Progress) => void,
): Promise<RerankResult> {
  const body = {
    model: "reranked",
    stream: true,
    messages: [{ role: "user", content: question.question }],
    max_tokens: question.maxTokens,
    temperature: question.temperature,
    rerank: {
      candidates: question.candidates,
      selector: question.selector,
      ...(question.aggregation && { aggregation: question.aggregation }),
      adaptive: question.adaptive,
      return_candidates: true,
      return_token_rewards: true,
    },
  };
  const response = await post("/v1/chat/completions", body, key, signal);
  let result: RerankResult | null = null;
  for await (const chunk of events(response, signal)) {
    if (chunk.error) throw new Refusal(chunk.error.message ?? "The gateway stopped halfway. Try again.");
    if (chunk.rerank_progress) onProgress(chunk.rerank_progress);
    if (chunk.rerank) result = chunk.rerank;
  }
  if (!result) throw new Refusal("The answer stopped halfway. Try again.");
  return result;
}

async function* events(response: Response, signal: AbortSignal): AsyncGenerator<Chunk> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error: unknown) => {
      if (signal.aborted) throw error;
      throw new Refusal("The connection to the gateway broke before the answer was complete. Try again.");
    });
    if (done) return;
    const lines = (pending + value).split("\n");
    pending = lines.pop() ?? "";
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6)) as Chunk;
    }
  }
}

/** Score a solution that was written elsewhere. */
export async function score(
  question: string,
  solution: string,
  key: string,
  signal: AbortSignal,
): Promise<RewardsResponse> {
  const body = { items: [{ question, solution }], granularity: "token" };
  const response = await post("/v1/rewards", body, key, signal);
  return (await response.json()) as RewardsResponse;
}
