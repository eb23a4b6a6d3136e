"""planaria: continual and meta-learning on Ray, with a model that grows and shrinks its own heads."""
