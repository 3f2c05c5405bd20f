"""How processes find each other, and what happens when one goes away."""
