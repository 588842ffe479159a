import { useState } from "preact/hooks";

const LOOK = "irlops-look";
const LOOKS = [
  { id: "system", name: "System", sign: "◐" },
  { id: "light", name: "Light", sign: "☀" },
  { id: "dark", name: "Dark", sign: "☾" },
] as const;

type Look = (typeof LOOKS)[number]["id"];

function remembered(): Look {
  const kept = localStorage.getItem(LOOK);
  return LOOKS.find(({ id }) => id === kept)?.id ?? "system";
}

/** As in style.css: without the attribute the page follows the system. */
function show(look: Look) {
  if (look === "system") delete document.documentElement.dataset.look;
  else document.documentElement.dataset.look = look;
}

/** Before the first paint, so that a dark page never flashes white. */
export function showRememberedLook() {
  show(remembered());
}

export function LookSwitch() {
  const [look, setLook] = useState(remembered);

  function choose(wanted: Look) {
    if (wanted === "system") localStorage.removeItem(LOOK);
    else localStorage.setItem(LOOK, wanted);
    show(wanted);
    setLook(wanted);
  }

  return (
    <fieldset class="look">
      <legend>Look of the page</legend>
      {LOOKS.map(({ id, name, sign }) => (
        <label key={id} title={name}>
          <input type="radio" name="look" value={id} checked={look === id} onChange={() => choose(id)} />
          <span aria-hidden="true">{sign}</span>
          <span class="name">{name}</span>
        </label>
      ))}
    </fieldset>
  );
}
