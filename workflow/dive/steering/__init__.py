from dive.steering.attach import attach as attach
