// Copy this file, fill in what is in angle brackets, keep the copy where the plant's settings are kept.
// Nothing here is a secret.
using 'main.bicep'

param namePrefix = 'pm'
param readingPartitions = 12

// For Kubernetes: az aks show --resource-group GROUP --name CLUSTER --query oidcIssuerProfile.issuerUrl --output tsv
param clusterIssuer = ''

// An IoT Hub that is read, too: ../iot-hub/README.md.
param iotHubName = ''

// The Logic App that tells people: ../actions/README.md.
param deployLogicApp = false
param teamId = '<id of the team>'
param channelId = '<id of the channel, 19:...@thread.tacv2>'
param mailRecipients = '<kim@example.com;lee@example.com>'
param timeZone = 'W. Europe Standard Time'

// The program as a Container App.
param deployContainerApp = false
param registryName = '<registry>'
param version = '0.1.0'
param maintenanceUrlSecret = ''
param takesOutcomes = false
