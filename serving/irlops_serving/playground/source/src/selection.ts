/** Selection over candidates at hand, by the rules of `irlops.selection`: ties keep the policy's order. */

import type { Candidate, Selector } from "./types";

export const SELECTORS: { id: Selector; name: string; rule: string }[] = [
  { id: "weighted_majority", name: "Weighted majority", rule: "adds up each answer's odds of being right" },
  { id: "majority", name: "Majority", rule: "counts how often each answer was given" },
  { id: "reward", name: "Highest reward", rule: "takes the candidate that the critic rewards most" },
  { id: "first", name: "First", rule: "takes the policy's first candidate, as without reranking" },
];

export function nameOf(selector: Selector): string {
  return SELECTORS.find((one) => one.id === selector)!.name;
}

/** The candidates, best first. Without rewards for half of them, selectors that need rewards fall back to the majority. */
export function ranked(candidates: Candidate[], selector: Selector): Candidate[] {
  const inOrder = [...candidates].sort((a, b) => a.index - b.index);
  const numScored = inOrder.filter((one) => one.reward !== null).length;
  const needsRewards = selector === "reward" || selector === "weighted_majority";
  const rule = needsRewards && 2 * numScored < inOrder.length ? "majority" : selector;
  if (rule === "first") return inOrder;
  if (rule === "reward") return inOrder.sort((a, b) => rewardOf(b) - rewardOf(a));
  return byVotes(inOrder, rule === "weighted_majority");
}

function byVotes(candidates: Candidate[], weighted: boolean): Candidate[] {
  const weights = new Map<number, number>();
  for (const { answer_group: group, chance } of candidates) {
    if (group !== null) weights.set(group, (weights.get(group) ?? 0) + (weighted ? oddsOf(chance ?? 0) : 1));
  }
  // Array.sort is stable and a Map keeps the order in which answers first came up.
  const groups = [...weights].sort((a, b) => b[1] - a[1]).map(([group]) => group);
  const rankOf = (one: Candidate) => (one.answer_group === null ? groups.length : groups.indexOf(one.answer_group));
  return candidates.sort((a, b) => rankOf(a) - rankOf(b) || (weighted ? rewardOf(b) - rewardOf(a) : 0));
}

/** What a vote weighs: odds of being right; no candidate counts as surer than 98 %. */
function oddsOf(chance: number): number {
  const bounded = Math.min(chance, 0.98);
  return bounded / (1 - bounded);
}

function rewardOf(candidate: Candidate): number {
  // Not minus infinity: two of those have no difference to sort by.
  return candidate.reward ?? -Number.MAX_VALUE;
}

/** How many candidates to compare at: powers of two, and all. */
export function sizesUpTo(total: number): number[] {
  const sizes = [1, 2, 4, 8, 16, 32].filter((size) => size < total);
  return [...sizes, total];
}
