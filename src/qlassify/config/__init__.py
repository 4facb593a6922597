"""What the user asked for, as frozen values. Nothing here imports torch.

``classify`` holds the library's flat face (``ClassifyConfig``), ``run`` the command's sections (``RunConfig``),
``method`` one class per fine-tuning method, ``recommend`` the values chosen when the user says nothing, and ``files``
turns YAML and ``--set`` into settings. Values flow down from here: a function below takes the one section that it
needs, never the whole.
"""
