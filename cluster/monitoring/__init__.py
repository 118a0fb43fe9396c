"""What is measured, shown and alerted on: names of metrics, dashboards, rules, and the Prometheus of one home."""
