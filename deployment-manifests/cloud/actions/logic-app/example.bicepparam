// Copy this file, fill in what is in angle brackets, keep the copy where the plant's settings are kept.
// Nothing here is a secret.
using 'main.bicep'

param namePrefix = 'predictive-maintenance'
param deployHttp = true
param deployEventHub = false

param teamId = '<id of the team>'
param channelId = '<id of the channel, 19:...@thread.tacv2>'
param mailRecipients = '<kim@example.com;lee@example.com>'
param timeZone = 'W. Europe Standard Time'

// Only if deployEventHub is true.
param eventHubNamespace = '<namespace>'
param eventHubName = 'alerts'
param consumerGroup = 'logic-app'

// The addresses from which the cloud-aggregator reaches Azure.
param allowedCallerIpRanges = []

// An action group that is told when a run fails.
param failureActionGroupId = ''
