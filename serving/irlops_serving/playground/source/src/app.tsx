import { useEffect, useRef, useState } from "preact/hooks";
import { AskForm } from "./ask_form";
import { ask, Refusal, score } from "./gateway";
import { Results, type Run } from "./results";
import { ScoreForm, ScoredSolution, type Scored } from "./scoring";
import { LookSwitch } from "./theme";
import type { Question } from "./types";

const KEY = "irlops-api-key";
const EXAMPLE = "Natalia sold 48 clips in April and half as many in May. How many clips did she sell in all?";

type Tab = "ask" | "score";

export function App() {
  const [tab, setTab] = useState<Tab>("ask");
  const [key, setKey] = useState(sessionStorage.getItem(KEY) ?? "");
  const [question, setQuestion] = useState(EXAMPLE);
  const [run, setRun] = useState<Run | null>(null);
  const [scored, setScored] = useState<Scored | null>(null);
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const [busy, setBusy] = useState(false);
  const stopper = useRef<AbortController | null>(null);
  const keyField = useRef<HTMLInputElement>(null);

  useEffect(() => {
    if (refusal?.needsKey) keyField.current?.focus();
  }, [refusal]);

  function rememberKey(value: string) {
    setKey(value);
    // Only for this tab: gone when it closes.
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  }

  async function working(work: (signal: AbortSignal) => Promise<void>) {
    const controller = (stopper.current = new AbortController());
    setBusy(true);
    setRefusal(null);
    try {
      await work(controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) {
        setRefusal(error instanceof Refusal ? error : new Refusal(`The page failed: ${String(error)}`));
      }
    } finally {
      setBusy(false);
    }
  }

  const start = (asked: Question) =>
    working(async (signal) => {
      const before = run;
      setRun({ asked, candidates: [], sampled: 0, scored: 0, judging: null, result: null });
      const result = await ask(asked, key.trim(), signal, (progress) =>
        setRun((old) => ({
          ...old!,
          sampled: progress.candidates_sampled,
          scored: progress.candidates_scored,
          judging: progress,
          candidates: progress.candidate ? [...old!.candidates, progress.candidate] : old!.candidates,
        })),
      ).catch((error: unknown) => {
        // A refusal does not take away what is on the page; candidates that came before a break stay.
        setRun((old) => (old?.candidates.length ? old : before));
        throw error;
      });
      setRun((old) => ({ ...old!, result, judging: result, candidates: result.candidates }));
    });

  const startScoring = (solution: string) =>
    working(async (signal) => {
      setScored(null);
      setScored({ solution, response: await score(question, solution, key.trim(), signal) });
    });

  const form = { question, setQuestion, busy, stop: () => stopper.current?.abort() };
  return (
    <>
      <header class="top">
        <h1>
          irlops <span>playground</span>
        </h1>
        <LookSwitch />
        <label class="key">
          <span>API key</span>
          <input
            ref={keyField}
            type="password"
            autocomplete="off"
            spellcheck={false}
            placeholder="if the gateway asks for one"
            value={key}
            onInput={(event) => rememberKey(event.currentTarget.value)}
          />
        </label>
      </header>
      <main>
        <Tabs tab={tab} choose={setTab} />
        <section id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`} class="card">
          {tab === "ask" ? (
            <AskForm {...form} start={start} />
          ) : (
            <ScoreForm {...form} start={startScoring} />
          )}
        </section>
        {refusal && (
          <p class="notice bad" role="alert">
            <span aria-hidden="true">✕ </span>
            {refusal.message}
          </p>
        )}
        {tab === "ask" && run && <Results run={run} busy={busy} />}
        {tab === "score" && scored && <ScoredSolution scored={scored} />}
      </main>
      <footer>
        <a href="/docs">Routes of this gateway</a> · the key stays in this tab, nothing leaves this origin ·{" "}
        <a href="licenses.txt">licences</a>
      </footer>
    </>
  );
}

function Tabs({ tab, choose }: { tab: Tab; choose: (tab: Tab) => void }) {
  const tabs: { id: Tab; name: string }[] = [
    { id: "ask", name: "Ask" },
    { id: "score", name: "Score a solution" },
  ];
  function onKeyDown(event: KeyboardEvent) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other: Tab = tab === "ask" ? "score" : "ask";
    choose(other);
    document.getElementById(`tab-${other}`)?.focus();
  }
  return (
    <div class="tabs" role="tablist" aria-label="What to do" onKeyDown={onKeyDown}>
      {tabs.map(({ id, name }) => (
        <button
          key={id}
          id={`tab-${id}`}
          role="tab"
          type="button"
          aria-selected={tab === id}
          aria-controls="panel"
          tabIndex={tab === id ? 0 : -1}
          onClick={() => choose(id)}
        >
          {name}
        </button>
      ))}
    </div>
  );
}
