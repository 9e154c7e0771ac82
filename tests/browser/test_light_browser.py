"""The light client in a real browser: from block 0 to the tip, and a balance under its root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chain.records import Account, account_key
from tests.kit.local_chain import key
from tests.kit.site import Site, Tab

Open = Callable[..., Tab]

WALK = """
async ({ nowMs, key, forge }) => {
  const light = await import("/static/light.js");
  const get = async (path) => {
    const answer = await fetch(`/api/v1/${path}`);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer;
  };
  const bytes = async (path) => new Uint8Array(await (await get(path)).arrayBuffer());
  const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (b) => parseInt(b, 16));
  const { headers } = light.decode(light.HeaderRange, await bytes("headers/0/0"));
  const { validators } = light.decode(light.LightBlock, await bytes("light/1"));
  const trusted = light.trust(headers[0], validators);
  const terms = { chainId: headers[0].chain_id, trustMs: 10n ** 9n, driftMs: 2000n };
  const state = await (await get(`state/${key}/proof`)).json();
  const walk = new light.Walk(terms, trusted, BigInt(state.height));
  while (walk.wanted !== null) {
    const raw = await bytes(`light/${walk.wanted}`);
    if (forge) raw[raw.indexOf(0xc4) + 40] ^= 1;
    try {
      walk.give(light.decode(light.LightBlock, raw), BigInt(nowMs));
    } catch (error) {
      if (error instanceof light.VerifyError) return { refused: error.message };
      throw error;
    }
  }
  const proof = light.decode(light.StateProof, unhex(state.proof));
  const root = walk.trusted.header.state_root;
  return {
    height: Number(walk.trusted.header.height),
    holds: light.verifyStateProof(root, unhex(key), unhex(state.value), proof),
    other: light.verifyStateProof(root, unhex(key), unhex(state.value + "00"), proof),
    value: state.value,
  };
}
"""


def test_from_genesis_to_a_balance(site: Site, open_tab: Open) -> None:
    tab = open_tab(site)
    tab.go("/")
    account = account_key(key("learner 0").public)
    tip = site.run(lambda chain: chain.chain.tip)
    asked = {"nowMs": tip.time_ms + 1000, "key": account.hex(), "forge": False}
    found: dict[str, Any] = tab.page.evaluate(WALK, asked)
    held = site.run(lambda chain: chain.state.tree.get(account))
    assert held is not None
    assert found == {"height": tip.height, "holds": True, "other": False, "value": held.hex()}
    assert site.run(lambda chain: chain.state.get(Account, account)) is not None
    forged = tab.page.evaluate(WALK, asked | {"forge": True})
    assert list(forged) == ["refused"]
    assert tab.errors == []
