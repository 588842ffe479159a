"""The operator of ``ReasoningPipeline``: from demonstrations to a served, evaluated pair, and back if it is worse.

    controller (kopf's watches, resync, one Lease)  ->  observe  ->  reconcile  ->  execute  ->  status
    names · jobs · serving          which objects a pipeline asks for
    training · rollout · reconcile  what is next, from what is seen; no I/O
    observing · executing           the only I/O, with registry and gateway behind ports

``reconcile`` is level-triggered: it looks at what is there, never at what happened. Objects are written before the status
that tells of them, and every name follows from the spec, so a process killed at any moment leaves nothing that its
successor doesn't find.
"""
