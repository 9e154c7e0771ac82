// The "verify in this browser" button of a tile's page.

import { verifyTile } from "./proof.js";

const button = document.querySelector("#verify");
const list = document.querySelector("#checks");
const cells = [...document.querySelectorAll("[data-subtile]")];

function line(text, ok) {
  const item = document.createElement("li");
  item.className = ok ? "ok" : "failed";
  item.textContent = text;
  list.append(item);
}

button?.addEventListener("click", async () => {
  button.disabled = true;
  list.replaceChildren();
  for (const cell of cells) cell.classList.remove("checked", "bad");
  const { api, data } = button.dataset;
  try {
    const [info, bytes] = await Promise.all([fetch(api), fetch(data)]);
    if (!info.ok || !bytes.ok) throw new Error("the node did not give the tile's bytes");
    const tile = await info.json();
    const content = new Uint8Array(await bytes.arrayBuffer());
    const good = verifyTile(tile, content, line, (i) => cells[i]?.classList.add("checked"));
    if (!good) for (const cell of cells) cell.classList.add("bad");
    line(good ? "This tile is what the chain says it is." : "This tile is not what the chain says.", good);
    button.textContent = "Verify again";
  } catch (error) {
    line(String(error.message ?? error), false);
  }
  button.disabled = false;
});
