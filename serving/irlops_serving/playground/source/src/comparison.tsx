import { SELECTORS, ranked, sizesUpTo } from "./selection";
import type { View } from "./results";
import type { Candidate } from "./types";

interface ComparisonProps {
  candidates: Candidate[];
  view: View;
  choose: (view: View) => void;
}

/**
 * What each selector would choose of the first N candidates; a cell shows that choice below. Selectors are the columns, for
 * there are always four of them: the table fits a phone, however many candidates there are.
 */
export function Comparison({ candidates, view, choose }: ComparisonProps) {
  const inOrder = [...candidates].sort((a, b) => a.index - b.index);
  const sizes = sizesUpTo(inOrder.length);
  return (
    <section class="card" aria-labelledby="comparison-title">
      <h2 id="comparison-title">Other selectors, fewer candidates</h2>
      <p class="hint">Recomputed from these candidates, nothing is sampled again. Choose a cell to see its order.</p>
      <table>
        <thead>
          <tr>
            <th scope="col">N</th>
            {SELECTORS.map(({ id, name, rule }) => (
              <th key={id} scope="col" title={`${name} ${rule}.`}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sizes.map((size) => (
            <tr key={size}>
              <th scope="row">{size}</th>
              {SELECTORS.map(({ id, name }) => {
                const chosen = ranked(inOrder.slice(0, size), id)[0]!;
                const answer = chosen.answer ?? "none";
                return (
                  <td key={id}>
                    <button
                      type="button"
                      aria-pressed={view.selector === id && view.size === size}
                      aria-label={`${name} of ${size}: ${answer}, candidate ${chosen.index}`}
                      onClick={() => choose({ selector: id, size })}
                    >
                      <b>{answer}</b> <small>#{chosen.index}</small>
                    </button>
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
