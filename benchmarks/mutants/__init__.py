"""Claim: the tests of four rooms notice at least 80 % of small faults put into their code.

    make mutants

`record` finds which tests run which lines, `faults` makes the mutants with cosmic-ray's operators and draws a sample, `trial`
runs each in a forked process that has torch imported already, and `page` writes `docs/mutation.md`. Every stage resumes where it
stopped.
"""
