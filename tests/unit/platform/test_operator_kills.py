"""Killed between any two calls, to the API server or to the registry, the operator's successor ends at the same place."""

import json
import re

from support.kube_api import KilledError
from support.kube_world import World, pipeline


def essence(world):
    """What is there in the end, without times and versions."""
    kept = {f"{kind}/{name}": body for (kind, name), body in world.api.objects.items() if kind != "Event"}
    text = json.dumps(kept, sort_keys=True)
    text = re.sub(r"2026-\d\d-\d\dT[\d:]+Z", "TIME", text)
    text = re.sub(r'"resourceVersion": "\d+"', '"resourceVersion": 0', text)
    text = re.sub(r'"uid": "uid-[A-Za-z]+-[-a-z0-9]+"', '"uid": 0', text)
    return json.loads(text) | {"alias": world.registry.alias, "pairs": len(world.registry.pairs)}


async def to_the_end(world, prepare):
    """Runs the story; a kill starts a new operator and goes on."""
    prepare(world)
    for _ in range(80):
        try:
            await world.run(steps=80)
        except KilledError:
            world.start_operator()
        else:
            return essence(world)
    raise AssertionError("it never ended")


def begin(world):
    """The first pair serves; then the alias is moved to one whose policy never becomes ready."""
    if not world.api.of_kind("ReasoningPipeline"):
        world.api.put(pipeline())
    world.unready = {"tiny-policy-v2"}


class Story(World):
    """A world in which moving an alias counts as a call, and a second pair turns up once the first one serves."""

    def __init__(self):
        super().__init__()
        move = self.registry.move_alias

        def counted(*arguments, **options):
            move(*arguments, **options)
            self.api.calls.append(("move", "mlflow/alias", ""))
            if self.api.kill_after is not None and len(self.api.calls) >= self.api.kill_after:
                self.api.kill_after = None
                raise KilledError("after moving the alias")

        self.registry.move_alias = counted

    async def run(self, name="tiny", **options):
        status = await super().run(name, **options)
        if len(self.registry.pairs) == 1:
            self.registry.register("by-hand")
            self.registry.alias["champion"] = 2
            status = await super().run(name, **options)
        return status


async def test_a_kill_after_any_call_changes_nothing_in_the_end():
    world = Story()
    wanted = await to_the_end(world, begin)
    num_calls = len(world.api.calls)
    assert (wanted["alias"], wanted["pairs"]) == ({"champion": 1}, 2)
    assert wanted["ReasoningPipeline/tiny"]["status"]["phase"] == "RolledBack"
    assert num_calls > 100
    for after in range(1, num_calls + 1):
        world = Story()
        world.api.kill_after = after
        assert await to_the_end(world, begin) == wanted, f"killed after call {after}"
