"""Hyper-parameter contracts as data: what settings are known to go wrong, by whom it was found, and what mends it.

    rule        severities, diagnostics, what a contract is
    situation   what a contract may look at: the run, and what is known of model, data and device
    sources     where the figures are from
    arithmetic  the closed forms that messages state
    entrenar    C-HP-001 to 008 on the flat ``ClassifyConfig``
    rates ...   one file per subject, on ``RunConfig``
    held        rules that the code leaves no way to break, with the test that holds each
    registry    all of them in order; ``check``

A contract is a value: the page in ``docs``, the command that explains it and the check itself read the same one. The
alternative, ``if`` ladders that print, can be neither listed nor held to a test that every rule fires and can be
satisfied. Nothing here imports torch.
"""
