"""Many runs side by side.

What is compared: `plan`, `tuning`, and the single runs (`jobs`). Who does it: `launch`, `crew`, `slurm`; how they share
it: `worker`, `folders`. What came of it: `results`, `notes`; all of it together: `comparison`.
"""
