# frozen_string_literal: true

require_relative "../app"

PhusionPassenger.on_event(:starting_worker_process) { |forked| warn PreforkCache.after_fork if forked } # the one line

run App
