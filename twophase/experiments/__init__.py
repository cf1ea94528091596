"""What is run and measured: configurations, run folders, comparisons, audits."""
