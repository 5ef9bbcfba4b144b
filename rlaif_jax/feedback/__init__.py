"""AI feedback: language models as judges, debaters and authors, behind one batched protocol."""
