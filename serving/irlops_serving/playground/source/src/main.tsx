import { render } from "preact";
import { App } from "./app";
import { showRememberedLook } from "./theme";
import "./style.css";

showRememberedLook();
render(<App />, document.getElementById("app")!);
