"""Learning to control: simulated streams on which a controller is trained and tested before it meets a real one."""
