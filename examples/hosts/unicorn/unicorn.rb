# frozen_string_literal: true

listen "127.0.0.1:#{ENV.fetch("PORT")}"
worker_processes 4
preload_app true
after_fork { |server, _worker| server.logger.info(PreforkCache.after_fork) } # the one line
