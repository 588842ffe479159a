"""From token rewards to advantages: clipping, aggregation to one number a trace, group baselines, discounting."""
