"""Whether each answer belongs to its image, through rollouts, restarts and kills."""
