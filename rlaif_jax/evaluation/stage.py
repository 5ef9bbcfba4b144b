"""The evaluation stage: answers of base, SFT and RL to the same held-out prompts, scored."""
def run_evaluate(x): raise SystemExit
def run_report(x): raise SystemExit
