import { useMemo, useState } from "preact/hooks";
import { LEVELS, levelOf, shown, type Scale } from "./colours";
import type { Aggregation, StepReward, SuspectedError, TokenReward } from "./types";

/** How a step's tokens become its reward; the gateway judges a step as it judges a solution. */
const REWARD_OF_A_STEP: Record<Aggregation, string> = {
  mean: "the mean of its tokens' rewards",
  min: "the lowest reward of its tokens",
  product: "all of its tokens right, by their rewards",
  last: "the reward of its last token",
  discounted: "the mean of its tokens' rewards, late ones counting most",
};

interface SolutionProps {
  name: string;
  text: string;
  tokens: TokenReward[];
  steps: StepReward[];
  suspected: SuspectedError | null;
  scale: Scale;
}

interface Piece {
  text: string;
  /** Place among the tokens; null for text that belongs to none. */
  token: number | null;
}

/** Tokens of a step with the text between them. Offsets are code points, so the text is cut as an array of those. */
function piecesOf(points: string[], tokens: TokenReward[], start: number, end: number): Piece[] {
  const pieces: Piece[] = [];
  let at = start;
  tokens.forEach((token, place) => {
    if (token.end <= at || token.end > end) return;
    const from = Math.max(token.start, at);
    if (from > at) pieces.push({ text: points.slice(at, from).join(""), token: null });
    pieces.push({ text: points.slice(from, token.end).join(""), token: place });
    at = token.end;
  });
  if (at < end) pieces.push({ text: points.slice(at, end).join(""), token: null });
  return pieces;
}

/** A solution step by step, its tokens coloured by reward; arrow keys or the pointer tell a token's numbers. */
export function Solution({ name, text, tokens, steps, suspected, scale }: SolutionProps) {
  const [current, setCurrent] = useState<number | null>(null);
  const rows = useMemo(() => {
    const points = Array.from(text);
    return steps.map((step, place) => {
      const end = steps[place + 1]?.start ?? points.length;
      return { step, pieces: piecesOf(points, tokens, place === 0 ? 0 : step.start, end) };
    });
  }, [text, tokens, steps]);

  function onKeyDown(event: KeyboardEvent) {
    const last = tokens.length - 1;
    const at = current ?? -1;
    const moves: Record<string, number> = {
      ArrowRight: Math.min(at + 1, last),
      ArrowLeft: Math.max(at - 1, 0),
      Home: 0,
      End: last,
    };
    const next = moves[event.key];
    if (next === undefined) return;
    event.preventDefault();
    setCurrent(next);
    (event.currentTarget as HTMLElement).querySelector(`[data-token="${next}"]`)?.scrollIntoView({ block: "nearest" });
  }

  function onPointerOver(event: PointerEvent) {
    const place = (event.target as HTMLElement).dataset.token;
    if (place !== undefined) setCurrent(Number(place));
  }

  return (
    <div class="solution">
      <div
        class="tokens"
        role="group"
        tabIndex={0}
        aria-label={`Tokens of ${name}. Left and right arrow keys go from token to token.`}
        onKeyDown={onKeyDown}
        onPointerOver={onPointerOver}
        onFocus={() => setCurrent((old) => old ?? 0)}
      >
        <ol>
          {rows.map(({ step, pieces }) => {
            const isSuspected = suspected?.step === step.index;
            return (
              <li key={step.index} class={isSuspected ? "suspected" : undefined}>
                <span class="step-reward">{shown(step.reward)}</span>
                <span class="step-text">
                  {isSuspected && <strong class="mark">⚠ Suspected first error</strong>}
                  {pieces.map(({ text: part, token }) => (
                    <Token key={token ?? part} text={part} place={token} tokens={tokens} scale={scale} current={current} />
                  ))}
                </span>
              </li>
            );
          })}
        </ol>
      </div>
      <Readout token={current === null ? undefined : tokens[current]} place={current ?? 0} of={tokens.length} />
    </div>
  );
}

interface TokenProps {
  text: string;
  place: number | null;
  tokens: TokenReward[];
  scale: Scale;
  current: number | null;
}

function Token({ text, place, tokens, scale, current }: TokenProps) {
  if (place === null) return <>{text}</>;
  const level = levelOf(tokens[place]!.reward, scale);
  return (
    <span class={`token level${level}${current === place ? " current" : ""}`} data-token={place}>
      {text}
    </span>
  );
}

function Readout({ token, place, of }: { token: TokenReward | undefined; place: number; of: number }) {
  return (
    <p class="readout" aria-live="polite">
      {token ? (
        <>
          <code>{token.text.trim() || "(white space)"}</code>
          <span>
            reward <b>{shown(token.reward)}</b>
          </span>
          <span>
            discounted return <b>{shown(token.discounted_return)}</b>
          </span>
          <span>
            token {place + 1} of {of}
          </span>
        </>
      ) : (
        "Point at a token or tap it, or focus the solution and use the arrow keys, for its numbers."
      )}
    </p>
  );
}

export function Legend({ scale, aggregation }: { scale: Scale; aggregation: Aggregation }) {
  const low = shown(scale.centre - scale.extent);
  const middle = shown(scale.centre);
  const high = shown(scale.centre + scale.extent);
  return (
    <figure class="legend">
      <div class="swatches" aria-hidden="true">
        {LEVELS.map((level) => (
          <span key={level} class={`token level${level}`} />
        ))}
      </div>
      <div class="ticks">
        <span>≤ {low}</span>
        <span>{middle}</span>
        <span>≥ {high}</span>
      </div>
      <figcaption>
        Reward of a token, in the critic's logits: higher reads more like an expert; {middle} is an even chance of being
        right. The number before a step is {REWARD_OF_A_STEP[aggregation]}.
      </figcaption>
    </figure>
  );
}
