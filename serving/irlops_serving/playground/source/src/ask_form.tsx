import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { SELECTORS } from "./selection";
import type { Aggregation, Question, Selector } from "./types";

export interface FormProps {
  question: string;
  setQuestion: (question: string) => void;
  busy: boolean;
  stop: () => void;
}

const AGGREGATIONS: { id: Aggregation | ""; name: string }[] = [
  { id: "", name: "as calibrated" },
  { id: "mean", name: "mean" },
  { id: "min", name: "lowest" },
  { id: "product", name: "all right" },
  { id: "last", name: "last" },
  { id: "discounted", name: "discounted" },
];

export function nameOfAggregation(aggregation: Aggregation): string {
  return AGGREGATIONS.find((one) => one.id === aggregation)!.name;
}

/** Enter with Control or Command sends the form from a text area. */
export function sendOnControlEnter(event: KeyboardEvent) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    (event.currentTarget as HTMLTextAreaElement).form?.requestSubmit();
  }
}

export function QuestionField({ question, setQuestion }: FormProps) {
  return (
    <label class="wide">
      <span>Question</span>
      <textarea
        rows={3}
        required
        value={question}
        onInput={(event) => setQuestion(event.currentTarget.value)}
        onKeyDown={sendOnControlEnter}
      />
    </label>
  );
}

export function AskForm(props: FormProps & { start: (question: Question) => void }) {
  const [candidates, setCandidates] = useState(8);
  const [selector, setSelector] = useState<Selector>("weighted_majority");
  const [aggregation, setAggregation] = useState<Aggregation | "">("");
  const [adaptive, setAdaptive] = useState(false);
  const [maxTokens, setMaxTokens] = useState(512);
  const [temperature, setTemperature] = useState(0.8);

  function submit(event: Event) {
    event.preventDefault();
    const { question } = props;
    props.start({ question, candidates, selector, aggregation, adaptive, maxTokens, temperature });
  }

  return (
    <form onSubmit={submit}>
      <QuestionField {...props} />
      <div class="fields">
        <NumberField name="Candidates (N)" value={candidates} set={setCandidates} min={1} max={64} step={1} />
        <label>
          <span>Selector</span>
          <select value={selector} onChange={(event) => setSelector(event.currentTarget.value as Selector)}>
            {SELECTORS.map(({ id, name }) => (
              <option key={id} value={id}>
                {name}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span>Reward of a solution</span>
          <select
            value={aggregation}
            onChange={(event) => setAggregation(event.currentTarget.value as Aggregation | "")}
          >
            {AGGREGATIONS.map(({ id, name }) => (
              <option key={id} value={id}>
                {name}
              </option>
            ))}
          </select>
        </label>
        <NumberField name="Temperature" value={temperature} set={setTemperature} min={0} max={2} step={0.1} />
        <NumberField name="Most tokens each" value={maxTokens} set={setMaxTokens} min={1} max={32768} step={1} />
      </div>
      <Buttons name="Ask" busy={props.busy} stop={props.stop}>
        <label class="check">
          <input
            type="checkbox"
            checked={adaptive}
            onChange={(event) => setAdaptive(event.currentTarget.checked)}
          />
          <span>Stop sampling when the answer is settled</span>
        </label>
      </Buttons>
    </form>
  );
}

interface ButtonsProps {
  name: string;
  busy: boolean;
  stop: () => void;
  children?: ComponentChildren;
}

export function Buttons({ name, busy, stop, children }: ButtonsProps) {
  return (
    <div class="buttons">
      <button class="main" type="submit" disabled={busy}>
        {busy ? "Working…" : name}
      </button>
      {busy && (
        <button type="button" onClick={stop}>
          Stop
        </button>
      )}
      <span class="hint">Ctrl + Enter sends</span>
      {children}
    </div>
  );
}

interface NumberFieldProps {
  name: string;
  value: number;
  set: (value: number) => void;
  min: number;
  max: number;
  step: number;
}

function NumberField({ name, value, set, ...limits }: NumberFieldProps) {
  return (
    <label>
      <span>{name}</span>
      <input
        type="number"
        required
        value={value}
        {...limits}
        onInput={(event) => {
          // An empty field is no number yet; the browser keeps the form from being sent.
          if (event.currentTarget.value) set(event.currentTarget.valueAsNumber);
        }}
      />
    </label>
  );
}
