import { useMemo, useState } from "preact/hooks";
import { Buttons, nameOfAggregation, QuestionField, sendOnControlEnter, type FormProps } from "./ask_form";
import { scaleOf, shown } from "./colours";
import { Legend, Solution } from "./solution";
import type { RewardsResponse } from "./types";

export interface Scored {
  solution: string;
  response: RewardsResponse;
}

export function ScoreForm(props: FormProps & { start: (solution: string) => void }) {
  const [solution, setSolution] = useState("");
  function submit(event: Event) {
    event.preventDefault();
    props.start(solution);
  }
  return (
    <form onSubmit={submit}>
      <QuestionField {...props} />
      <label class="wide">
        <span>Your solution, a step on each line, with the answer after ####</span>
        <textarea
          rows={6}
          required
          value={solution}
          onInput={(event) => setSolution(event.currentTarget.value)}
          onKeyDown={sendOnControlEnter}
        />
      </label>
      <Buttons name="Score" busy={props.busy} stop={props.stop} />
    </form>
  );
}

export function ScoredSolution({ scored: { solution, response } }: { scored: Scored }) {
  const item = response.items[0]!;
  const tokens = item.tokens ?? [];
  const scale = useMemo(() => scaleOf([tokens], response.even_chance_reward), [response]);
  return (
    <section class="card" aria-labelledby="scored-title">
      <div class="row">
        <h2 id="scored-title">
          Your solution <output class="answer">{item.answer ?? "no final answer"}</output>
        </h2>
        <Legend scale={scale} aggregation={response.aggregation} />
      </div>
      <p class="facts">
        reward <b>{shown(item.reward)}</b> ({nameOfAggregation(response.aggregation)}) · {item.num_tokens} tokens ·{" "}
        {item.suspected_first_error
          ? `suspected first error in step ${item.suspected_first_error.step + 1}`
          : "no step looks wrong"}{" "}
        · critic {response.pair.critic_version}
      </p>
      <Solution
        name="your solution"
        text={solution}
        tokens={tokens}
        steps={item.steps}
        suspected={item.suspected_first_error}
        scale={scale}
      />
    </section>
  );
}
