"""Many runs side by side: what is compared (`plan`, `tuning`), who does it (`workers`, `claims`), what came of it."""
