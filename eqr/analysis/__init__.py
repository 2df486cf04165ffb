"""What chapters ask of trained models: theory, dynamics, landscape, variance, plans, figures."""
