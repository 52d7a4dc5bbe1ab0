"""Masks on frames, contact sheets and animations: the one place that draws videos."""
