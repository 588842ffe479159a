/** The gateway's bodies, as far as the page reads them; `irlops.contracts.rerank` defines them. */

export type Selector = "reward" | "majority" | "weighted_majority" | "first";
export type Aggregation = "mean" | "min" | "product" | "last" | "discounted";

export interface TokenReward {
  text: string;
  /** Unicode code points, `end` exclusive. */
  start: number;
  end: number;
  reward: number;
  discounted_return: number;
}

export interface StepReward {
  index: number;
  start: number;
  end: number;
  reward: number;
}

export interface SuspectedError {
  step: number;
  reward: number;
}

export interface Candidate {
  index: number;
  text: string;
  answer: string | null;
  reward: number | null;
  finish_reason: string | null;
  num_tokens: number;
  chance: number | null;
  answer_group: number | null;
  token_rewards: TokenReward[] | null;
  steps: StepReward[] | null;
  suspected_first_error: SuspectedError | null;
}

/** How rewards are read: what makes one number of a step's tokens, and the number at which chances are even. */
export interface Judging {
  aggregation: Aggregation;
  even_chance_reward: number;
}

export interface Progress extends Judging {
  stage: string;
  candidates_requested: number;
  candidates_sampled: number;
  candidates_scored: number;
  candidate: Candidate | null;
}

export interface RerankResult extends Judging {
  selector: Selector;
  requested_selector: Selector;
  candidates_sampled: number;
  candidates_scored: number;
  chosen_index: number;
  degraded: string | null;
  stopped_early: boolean;
  explanation: string;
  pair: { policy_version: string; critic_version: string };
  answers: { answer: string | null; votes: number; weight: number }[];
  timings_ms: { sampling: number; scoring: number; total: number };
  candidates: Candidate[];
}

export interface ItemRewards {
  reward: number;
  answer: string | null;
  num_tokens: number;
  tokens: TokenReward[] | null;
  steps: StepReward[];
  suspected_first_error: SuspectedError | null;
}

export interface RewardsResponse extends Judging {
  pair: { policy_version: string; critic_version: string };
  items: ItemRewards[];
}

export interface Question {
  question: string;
  candidates: number;
  selector: Selector;
  aggregation: Aggregation | "";
  adaptive: boolean;
  maxTokens: number;
  temperature: number;
}
