import { useEffect, useMemo, useState } from "preact/hooks";
import { nameOfAggregation } from "./ask_form";
import { percent, scaleOf, shown, type Scale } from "./colours";
import { Comparison } from "./comparison";
import { nameOf, ranked } from "./selection";
import { Legend, Solution } from "./solution";
import type { Candidate, Judging, Question, RerankResult, Selector } from "./types";

export interface Run {
  asked: Question;
  candidates: Candidate[];
  sampled: number;
  scored: number;
  /** Null until the gateway has said something. */
  judging: Judging | null;
  result: RerankResult | null;
}

export interface View {
  selector: Selector;
  size: number;
}

const DEGRADED: Record<string, string> = {
  critic_unavailable: "The critic did not answer, so the majority vote chose, without rewards.",
  deadline: "The deadline passed before every candidate was sampled and scored.",
  token_budget: "The token budget was spent before every candidate was finished.",
  policy_interrupted: "The policy stopped halfway; the candidates finished before that were used.",
};

export function Results({ run, busy }: { run: Run; busy: boolean }) {
  const { candidates, judging, result } = run;
  const [view, setView] = useState<View | null>(null);
  useEffect(() => setView(null), [result]);
  const scale = useMemo(
    () => scaleOf(candidates.map((one) => one.token_rewards ?? []), judging?.even_chance_reward ?? 0),
    [candidates, judging],
  );
  const asked: View = { selector: result?.requested_selector ?? run.asked.selector, size: candidates.length };
  const current = view ?? asked;
  const order = result ? orderOf(candidates, current, view === null ? result : null) : candidates;
  return (
    <>
      {busy && <ProgressBar run={run} />}
      {result && <Verdict result={result} chosen={order[0]!} view={view} reset={() => setView(null)} />}
      {result && candidates.length > 1 && <Comparison candidates={candidates} view={current} choose={setView} />}
      {candidates.length > 0 && judging && (
        <section aria-labelledby="candidates-title">
          <div class="row">
            <h2 id="candidates-title">Candidates</h2>
            <Legend scale={scale} aggregation={judging.aggregation} />
          </div>
          {order.map((one, place) => (
            <CandidateCard key={one.index} candidate={one} scale={scale} isChosen={result !== null && place === 0} />
          ))}
        </section>
      )}
    </>
  );
}

/** The gateway's own choice stands first in its own view, whatever this page would compute. */
function orderOf(candidates: Candidate[], view: View, result: RerankResult | null): Candidate[] {
  const inOrder = [...candidates].sort((a, b) => a.index - b.index).slice(0, view.size);
  const order = ranked(inOrder, view.selector);
  if (!result) return order;
  const chosen = order.filter((one) => one.index === result.chosen_index);
  return [...chosen, ...order.filter((one) => one.index !== result.chosen_index)];
}

function ProgressBar({ run }: { run: Run }) {
  const wanted = run.asked.candidates;
  return (
    <div class="progress" role="status">
      <progress max={2 * wanted} value={run.sampled + run.scored} aria-label="Candidates sampled and scored" />
      <span>
        {run.sampled} of {wanted} written, {run.scored} scored
      </span>
    </div>
  );
}

interface VerdictProps {
  result: RerankResult;
  chosen: Candidate;
  view: View | null;
  reset: () => void;
}

function Verdict({ result, chosen, view, reset }: VerdictProps) {
  const seconds = (result.timings_ms.total / 1000).toFixed(1);
  return (
    <section class="card verdict" aria-labelledby="verdict-title">
      {result.degraded && (
        <p class="notice warn" role="alert">
          <span aria-hidden="true">⚠ </span>
          {DEGRADED[result.degraded] ?? `The answer is degraded (${result.degraded}).`}
        </p>
      )}
      <h2 id="verdict-title">
        <span>{view ? `${nameOf(view.selector)} of ${view.size}` : "Answer"}</span>
        <output class="answer">{chosen.answer ?? "no final answer"}</output>
      </h2>
      {view ? (
        <p>
          Recomputed from the candidates at hand. <button onClick={reset}>Back to the gateway's choice</button>
        </p>
      ) : (
        <p>{result.explanation}</p>
      )}
      {chosen.chance !== null && chosen.chance < 0.5 && (
        <p class="doubt">
          <span aria-hidden="true">⚠ </span>The critic finds this candidate more likely wrong than right (
          {percent(chosen.chance)}).
        </p>
      )}
      <p class="facts">
        {result.candidates_sampled} sampled, {result.candidates_scored} scored in {seconds} s
        {result.stopped_early && ", stopped early because the answer was settled"} · reward of a solution:{" "}
        {nameOfAggregation(result.aggregation)} ·
        policy {result.pair.policy_version} with critic {result.pair.critic_version}
      </p>
    </section>
  );
}

interface CardProps {
  candidate: Candidate;
  scale: Scale;
  isChosen: boolean;
}

function CandidateCard({ candidate, scale, isChosen }: CardProps) {
  const [open, setOpen] = useState(isChosen);
  useEffect(() => setOpen(isChosen), [isChosen]);
  const { token_rewards: tokens, steps } = candidate;
  const name = `candidate ${candidate.index}`;
  return (
    <details
      class={isChosen ? "card candidate chosen" : "card candidate"}
      data-candidate={candidate.index}
      open={open}
      onToggle={(event) => setOpen(event.currentTarget.open)}
    >
      <summary>
        <span class="what">
          {isChosen && <span class="badge">★ Chosen</span>}
          <span>Candidate {candidate.index}</span>
          <b class="answer">{candidate.answer ?? "no final answer"}</b>
        </span>
        <span class="numbers">
          <span>{candidate.reward === null ? "not scored" : `reward ${shown(candidate.reward)}`}</span>
          {candidate.chance !== null && <span>{percent(candidate.chance)} likely right</span>}
          <span>{candidate.num_tokens} tokens</span>
          {candidate.finish_reason === "length" && <span class="cut">cut off</span>}
          {candidate.suspected_first_error && <span class="cut">⚠ step {candidate.suspected_first_error.step + 1}</span>}
        </span>
      </summary>
      {open &&
        (tokens && steps ? (
          <Solution
            name={name}
            text={candidate.text}
            tokens={tokens}
            steps={steps}
            suspected={candidate.suspected_first_error}
            scale={scale}
          />
        ) : (
          <p class="plain">{candidate.text}</p>
        ))}
    </details>
  );
}
