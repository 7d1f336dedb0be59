"""Single-step adversarial training that stays robust, and an audit that tells whether a model is.

Where to begin; each is imported by its own name, and `help` of what is in it has an example:

- `surefoot.objectives`: `SatR1`, `SatR2`, `SatR3` and their baselines, called with (model, inputs, labels) in any
  training loop.
- `surefoot.attacks`: `FGSM`, `PGD`, `AutoAttack` and more, called with (model, inputs, labels).
- `surefoot.evaluation`: `evaluate`, the accuracy under a list of attacks; `recognise`, for models that give no logits
  or want another range.
- `surefoot.audit`: `audit`, whether a model is robust or masks its gradients; `surefoot.report.write_page`, its page.
- `surefoot.training`: `fit`, a whole training of a model of your own; `Monitor`, which sees masking begin.
- `surefoot.recipes`: `RECIPES` and `train`, the paper's trainings by their names, made of `surefoot.data` and
  `surefoot.models`.

On the command line: `surefoot --help`.
"""

__version__ = "0.1.0"
