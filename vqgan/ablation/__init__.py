"""Fair comparisons: one base config times variants times seeds, on one budget, as runs that can be stopped at any time.

`file` reads what is to be compared, `plan` turns it into runs, `slots` and `runner` train them, `records` reads what
they measured, and `statistics`, `report` and `curves` tell what came out. Nothing here imports torch.
"""
